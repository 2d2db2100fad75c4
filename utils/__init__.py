"""The MHub modules: one class a file named after it, run by mhubio's own runner from ``config/*.yml``.

Each reads files, calls a stage of the chain, and writes files. MHub imports them as
``models.deepcac2.utils.<Module>``. Only this room imports mhubio.
"""
