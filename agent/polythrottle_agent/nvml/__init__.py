"""NVIDIA's management library, through the public nvidia-ml-py binding (extra `nvidia`)."""
