// The page of ai_sdk_chat.py, /ai_sdk_chat.html. Build it into the folder `page`:
//   npm install @ai-sdk/react react react-dom esbuild
//   npx esbuild examples/ai_sdk_chat.{jsx,html} --bundle --format=esm --jsx=automatic --loader:.html=copy --outdir=page
import {useChat} from "@ai-sdk/react";
import {useState} from "react";
import {createRoot} from "react-dom/client";

// The address of the page names the chat.
const id = location.hash.slice(1) || crypto.randomUUID();
location.hash = id;
const stored = await (await fetch(`/api/chat/${id}`)).json();
// For every tab. The `stop` of useChat ends the stream of its own tab, and the answer goes on.
const stop = () => fetch(`/api/chat/${id}/stream`, {method: "DELETE"});

function Chat() {
  const {messages, sendMessage, resumeStream, regenerate, status, error} = useChat({id, messages: stored, resume: true});
  const [text, setText] = useState("Why is the sky blue?");
  const send = (event) => {
    event.preventDefault();
    sendMessage({text});
  };
  const busy = status === "submitted" || status === "streaming";
  return (
    <>
      {messages.map(({id, role, parts}) => (
        <p key={id} className={role}>{parts.map((part) => part.text).join("")}</p>
      ))}
      <form onSubmit={send}>
        <input value={text} onChange={({target}) => setText(target.value)} /> <button disabled={busy}>Ask</button>
      </form>
      <p><b id="state">{status}</b> <i>{error?.message}</i></p>
      {busy && <button id="stop" onClick={stop}>Stop</button>}
      {error && <button id="resume" onClick={() => resumeStream()}>Go on</button>}
      {error && <button id="again" onClick={() => regenerate()}>Answer again</button>}
    </>
  );
}

createRoot(document.querySelector("#chat")).render(<Chat />);
