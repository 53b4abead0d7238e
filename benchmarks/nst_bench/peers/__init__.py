"""Other software that stylizes or serves: its processes, and `worker/`, which runs in an environment of its own."""
