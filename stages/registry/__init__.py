"""The registered models: versions and the champion among them, and what a served version answers with."""
