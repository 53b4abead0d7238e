"""Applications on top of `nst_client`: videos and cameras, batches on a cluster, and a web page."""
