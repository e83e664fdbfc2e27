"""Tests of an answer: rules, a second method, red flags."""
