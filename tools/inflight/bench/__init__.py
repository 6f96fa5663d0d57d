"""Load generators and their tables: the executor in this process, or a running server over gRPC streaming."""
