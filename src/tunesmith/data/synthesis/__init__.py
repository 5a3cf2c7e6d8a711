"""Rows written by a model, one way per file: `make(seeds, ...)` asks in rounds and returns what it made.

A way is a generator of rounds: it yields a list of requests and is sent the list of their answers, so that the same code
runs against an endpoint, many requests at a time, and a local model, in batches; it returns a list of Made.
"""
