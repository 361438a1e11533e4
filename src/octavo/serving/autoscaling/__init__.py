"""How many instances a load needs: target tracking, and a dry run of it on a recorded trace."""
