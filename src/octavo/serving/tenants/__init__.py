"""What a customer adds to a shared embedding model: an intent classifier and a low-rank adapter, learnt by numpy."""
