"""The HTTP interface: OpenAI's paths under /v1, zenos' own under /api."""
