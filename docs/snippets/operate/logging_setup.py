import logging

logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
logging.getLogger("livepush_asgi").setLevel(logging.INFO)
