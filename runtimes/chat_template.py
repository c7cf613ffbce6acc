"""Chat messages to prompt text, by the model's own template in a sandbox."""
