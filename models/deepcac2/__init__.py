"""The network that the authors of DeepCAC2 published, used as their implementation uses it."""
