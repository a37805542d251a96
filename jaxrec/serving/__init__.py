"""Serving: exported models as a service over HTTP."""
