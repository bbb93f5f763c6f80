"""One module per command of `exegpt`: its flags at import, its work in `main`."""
