"""SageMaker's control plane: models, endpoint configurations and endpoints as boto3's `sagemaker` client declares them.

What is declared is kept in documents (`records`); an endpoint's work (`control_plane`) fetches its models' data
(`sources`), publishes them into the repository (`publishing`) and declares an endpoint of octavo's that asks them.
"""
