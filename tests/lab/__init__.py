"""Tests on several hosts, and the labs that provide them."""
