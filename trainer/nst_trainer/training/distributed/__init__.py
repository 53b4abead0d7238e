"""Several processes, on one machine or many, train one network."""
