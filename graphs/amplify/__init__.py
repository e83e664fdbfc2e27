"""Amplify: one question, decomposed by an overseer and answered by many copies, as a LangGraph
graph."""
