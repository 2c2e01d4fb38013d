import { StrictMode } from 'react';
import { createRoot } from 'react-dom/client';
import { App } from './App';
import { Session } from './session';
import './panel.css';

const root = document.getElementById('panel');
if (root === null) throw new Error('index.html has no element "panel"');
createRoot(root).render(
  <StrictMode>
    <App session={new Session()} />
  </StrictMode>,
);
