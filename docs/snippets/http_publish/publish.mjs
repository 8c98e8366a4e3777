import { createHmac, randomUUID } from "node:crypto";

async function publish(channel, data, event, key = randomUUID()) {
  const body = JSON.stringify({ channel, data, event });
  const now = Math.floor(Date.now() / 1000);
  const signature = createHmac("sha256", process.env.PUBLISH_SECRET)
    .update(`${now}\n${key}\n${body}`)
    .digest("hex");
  const response = await fetch(process.env.PUBLISH_URL, {
    method: "POST",
    body,
    headers: {
      "Content-Type": "application/json",
      "Idempotency-Key": key,
      "X-Signature": `t=${now},v1=${signature}`,
    },
  });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  return (await response.json()).id;
}

console.log(await publish("news", { title: "from Node" }, "headline"));
