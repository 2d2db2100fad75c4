"""Training. Knows the models and the simulator; nothing here runs at inference."""
