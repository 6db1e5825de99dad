"""Facts about boards, one YAML file a board, each with its source; `profile.schema.json` describes them.

Read them through `polythrottle.profiles`.
"""
