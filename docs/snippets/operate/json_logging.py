import json
import logging


class JSONFormatter(logging.Formatter):
    def format(self, record):
        line = {"time": self.formatTime(record), "level": record.levelname, "text": record.getMessage()}
        line |= {name: value for name, value in vars(record).items() if name.startswith("livepush_")}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


handler = logging.StreamHandler()
handler.setFormatter(JSONFormatter())
logging.basicConfig(handlers=[handler])
logging.getLogger("livepush_asgi").setLevel(logging.INFO)
