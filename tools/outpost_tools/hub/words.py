"""What happens in a hub, in one line for a person.

It owns the sentences and nothing else; an event's form is that of `HubCore.events`.
"""

from outpost_tools.hub.news import Event


def in_words(event: Event) -> str:
    """One line for a person, control characters shown: names and telemetry are others' text."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in _in_words(event))


def _in_words(event: Event) -> str:
    who = event.get("device") or event.get("peer") or ""
    match event["event"]:
        case "listening":
            return f"listening on {event['host']}:{event['port']} as {', '.join(event['names'])}"
        case "connected":
            return f"{who} connected with {event['tls']} {event['cipher']}"
        case "refused":
            return f"{who} refused with CONNACK {event['code']}: {event['reason']}"
        case "tls-failed":
            return f"{who} TLS handshake failed: {event['reason']}"
        case "telemetry":
            again = " (again)" if event["dup"] else ""
            return f"{who} sent{again} {event['body']}"
        case "command-queued":
            return f"{who} has the command {event['message_id']} waiting"
        case "command-sent":
            return f"{who} was sent the command {event['message_id']} (try {event['deliveries']})"
        case "command-completed":
            return f"{who} acknowledged the command {event['message_id']}"
        case "command-dead":
            return f"{who} will not get the command {event['message_id']}: {event['state']}"
        case "twin-desired":
            return f"{who} is to have desired properties of version {event['version']}"
        case "twin-reported":
            return f"{who} reported properties, version {event['version']}"
        case "method":
            how = f"with {event['status']}" if event["status"] is not None else "nothing"
            return f"{who} answered the method {event['name']} {how}"
        case "rest-listening":
            return f"services are answered on https://{event['host']}:{event['port']}"
        case "rest-fault":
            return f"a service's request failed: {event['reason']}"
        case "provisioned":
            return f"{who} was provisioned: {event['reason']}"
        case "not-provisioned":
            return f"{who} was not provisioned: {event['reason']}"
        case _:
            return f"{who} closed: {event['reason']}"
