"""Many clients of every kind at one server for a long time, and whether each of them got exactly what it should."""
