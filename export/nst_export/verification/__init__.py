"""The gate: a model whose engines do not agree with PyTorch on real photographs is not published."""
