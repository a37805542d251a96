"""An artefact as a service over HTTP. `scripts/serve.py` starts it; docs/serving.md tells how."""
