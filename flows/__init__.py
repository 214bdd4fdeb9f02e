"""Orchestration floor: Prefect decides when the stages run. Nothing imports from here."""
