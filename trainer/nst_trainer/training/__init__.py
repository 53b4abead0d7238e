"""Training feed-forward networks: the loop, its data, validation, and several processes."""
