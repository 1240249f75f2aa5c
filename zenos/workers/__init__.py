"""Worker processes: shims, the zygote's client, limits, supervision."""
