"""From a model's files to an endpoint: content-addressed packages, artifacts of others, and deployments."""
