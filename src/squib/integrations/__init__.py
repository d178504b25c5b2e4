"""Adapters that let other frameworks use squib's VMs.

Each one needs its framework and is imported only by name.

- `squib.integrations.inspect`: a sandbox for Inspect AI. Install ``squib[inspect]``.
- `squib.integrations.langchain`: a sandbox for LangChain's Deep Agents. Install ``squib[langchain]``.
"""
