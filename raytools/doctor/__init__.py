"""Declared = physical = logical: gather facts, evaluate them by pure checks, report findings."""
