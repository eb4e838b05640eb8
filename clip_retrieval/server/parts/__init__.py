"""An index in parts on other servers: all of them asked at once, and their hits merged."""
