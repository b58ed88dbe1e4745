"""Rewards over HTTP: the wire, the server, and the client."""
