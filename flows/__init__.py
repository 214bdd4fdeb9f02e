"""Orchestration floor: Prefect decides when the stages run. Nothing imports from here."""

from flows import environment

environment.prepare()
