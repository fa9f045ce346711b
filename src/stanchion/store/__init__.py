"""Shared state in Redis, behind one protocol."""
