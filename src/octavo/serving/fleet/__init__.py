"""A fleet: replicas of the server on the nodes of a Ray cluster, each with a memory budget of its own.

The front (`service.FleetServing`) is what the doors call. It knows what each replica holds, sends a request to where
its model is (`routing`), sends it again when a replica is lost (`fleet`), and grows and shrinks (`scaling`).
"""
