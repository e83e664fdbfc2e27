"""Reflux inside LangChain and LangGraph programs."""
