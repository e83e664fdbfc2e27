"""One chat call: to an OpenAI-compatible endpoint, a LangChain model, or llama.cpp in process."""
