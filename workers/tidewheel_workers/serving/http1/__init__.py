"""HTTP/1.1 for the gateway's path: a lean server and client on llhttp, with bounds on everything a peer may send.

`messages` are the values, `request_reader` and `answer_reader` turn bytes into them without sockets, `server` and `client`
hold the connections. Nothing here knows of OpenAI's API, of prefills or of decodes.
"""
