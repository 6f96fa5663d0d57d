"""OpenAI's HTTP interface in front of a Triton server's engine model. README.md tells the parts."""

PORT = 9000
