"""The gemmule command: a client of the HTTP API, except for commands that open the store."""
