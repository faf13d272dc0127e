"""From a credential to a principal: callers' keys, and the tickets that stand for them in browsers."""
