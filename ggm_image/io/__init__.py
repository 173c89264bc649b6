"""Files on disk and over the network: atomic writes, downloads, safetensors, YAML, config schemas."""
