"""Named tensors: as one flat vector, as safetensors bytes, as a digest. Knows no framework and no file."""
