"""BPF C sources and the headers that kernel and user space share; no code of its own."""
