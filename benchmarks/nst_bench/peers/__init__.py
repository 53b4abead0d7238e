"""Other runtimes and servers: their processes, and `worker/`, which runs in their own environment."""
