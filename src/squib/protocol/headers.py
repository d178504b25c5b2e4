"""HTTP headers of the engine's API."""

CLIENT_HEADER = "squib-client"
"""The version of the client that sends a request."""
