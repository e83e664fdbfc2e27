"""What an agent has done instead of guessing: arithmetic, programs, documents, LangChain and MCP
tools."""
