"""The protocols the server speaks; each module parses requests, asks the service, and writes answers."""
