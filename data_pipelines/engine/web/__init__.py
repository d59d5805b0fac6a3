"""The annotation app: an HTTP API and the page that uses it."""
